"""The Chinese national algorithms (国密) that banks ask for: SM2 with SM3, and SM4."""
