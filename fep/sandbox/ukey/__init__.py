"""Virtual USB-Keys behind a real pcscd: a reader driver, PIV cards and the rig that starts them.

``ifd_vslot.c`` is a PC/SC reader driver, ``piv`` a card in Python, ``cards`` the process that holds
the cards, and :class:`fep.sandbox.ukey.rig.UkeyRig` starts all of it, private to its caller.
"""
