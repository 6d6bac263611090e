"""Stand-ins for what the machine cannot have: strict where the real thing is."""
