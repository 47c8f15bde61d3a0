"""Alarms (报警): raised once for each cause, acknowledged by a person, cleared when it is over."""
