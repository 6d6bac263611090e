arch          = "arm64"
instance_type = "m7g.large"
