"""USB-Key slots: everything between "sign these bytes" and the chip."""
