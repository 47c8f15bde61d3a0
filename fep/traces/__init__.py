"""Traces (调用链): one a task, made of its chain of events, sent to an OpenTelemetry receiver."""
