locals {
  name = "flox-eks-node-al2023-${var.arch}-${var.variant}-${var.kubernetes}-${var.payload_version}"
  tags = merge(var.tags, {
    Name                    = local.name
    "flox.dev/version"      = var.payload_version
    "flox.dev/payload"      = var.payload_sha256
    "flox.dev/kubernetes"   = var.kubernetes
    "flox.dev/architecture" = var.arch
    "flox.dev/variant"      = var.variant
    "flox.dev/eks-release"  = var.eks_release == "" ? "recommended" : var.eks_release
    "flox.dev/source-ami"   = "{{ .SourceAMI }}"
    "flox.dev/source-name"  = "{{ .SourceAMIName }}"
  })
}

source "amazon-ebs" "flox" {
  region                      = var.region
  ami_regions                 = var.copy_to_regions
  source_ami                  = local.source_ami
  ami_name                    = "${local.name}-${formatdate("YYYYMMDDhhmmss", timestamp())}"
  ami_description             = "EKS node (AL2023, Kubernetes ${var.kubernetes}) with flox-node ${var.payload_version}"
  instance_type               = var.instance_type
  subnet_id                   = var.subnet
  iam_instance_profile        = var.instance_profile
  associate_public_ip_address = var.subnet == ""
  ssh_username                = "ec2-user"
  ssh_interface               = var.subnet == "" ? "public_ip" : "private_ip"
  temporary_key_pair_type     = "ed25519"
  encrypt_boot                = true
  kms_key_id                  = var.kms_key
  tags                        = local.tags
  run_tags                    = local.tags
  run_volume_tags             = local.tags
  snapshot_tags               = local.tags

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  imds_support = "v2.0" # of the nodes: instances of this image refuse IMDSv1, too

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp3"
    volume_size           = var.volume_gib
    iops                  = 3000
    throughput            = 125
    encrypted             = true
    delete_on_termination = true
  }

  aws_polling {
    delay_seconds = 30
    max_attempts  = 480
  }
}

build {
  sources = ["source.amazon-ebs.flox"]

  provisioner "file" {
    sources     = ["${path.root}/bootstrap.sh", "${path.root}/scripts/install.sh"]
    destination = "/tmp/"
  }

  provisioner "shell" {
    inline = ["sh /tmp/install.sh && rm -f /tmp/install.sh /tmp/bootstrap.sh"]
    # A pre-signed URL is a secret, and command lines are not: by a file, which Packer removes.
    use_env_var_file = true
    execute_command  = ". {{ .EnvVarFile }} && sudo -E sh {{ .Path }}"
    environment_vars = [
      "FLOX_NODE_PAYLOAD=${var.payload}",
      "FLOX_NODE_SHA256=${var.payload_sha256}",
    ]
  }

  # The login of this very session is among what goes: nothing can follow but on this connection.
  provisioner "shell" {
    scripts         = ["${path.root}/scripts/clean.sh", "${path.root}/scripts/check.sh"]
    execute_command = "sudo sh '{{ .Path }}'"
  }

  post-processor "manifest" {
    output     = "manifest.json"
    strip_path = true
    custom_data = {
      kubernetes      = var.kubernetes
      variant         = var.variant
      architecture    = var.arch
      payload_version = var.payload_version
      payload_sha256  = var.payload_sha256
    }
  }
}
