arch          = "x86_64"
instance_type = "m7i.large"
