"""The words of the product as plain types: money, ids, time, accounts, operations. No I/O."""
