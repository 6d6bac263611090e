"""The test bed: real containerd releases and throw-away nodes on this machine. See README.md beside this file."""
