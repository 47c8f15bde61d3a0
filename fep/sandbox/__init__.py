"""Stand-ins for what lies outside the product: banks and USB-Keys, for tests and the demo."""
