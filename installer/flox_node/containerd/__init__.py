"""containerd in two rooms: `config`, the pure model of its configuration, and `live`, the running daemon."""
