"""The running containerd: its CRI, which process it is, what it makes of a candidate, its restart and the way back."""
