"""What outlives a run: the journal, the receipt, the policy. Pure: bytes come and go through a small protocol."""
