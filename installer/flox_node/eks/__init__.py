"""Files for groups of Flox nodes on EKS, for the tools that make such groups. Pure: choices in, texts out."""
