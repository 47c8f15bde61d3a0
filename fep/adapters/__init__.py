"""What a bank adapter is: the interface, the behaviour card, the registry, the host's half."""
