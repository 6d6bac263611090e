# Flox nodes on EKS (AL2023): their image has all.
# Then, once for the cluster: the RuntimeClass, and the reporter that lifts the startup taint:
#   kubectl apply -k daemonset/overlays/baked
variable "subnet_ids" {
  type = list(string)
}

data "aws_eks_cluster" "this" {
  name   = "demo"
  region = "eu-central-1"
}

module "flox_nodes" {
  source  = "terraform-aws-modules/eks/aws//modules/eks-managed-node-group"
  version = "~> 21.19"

  name                 = "flox"
  cluster_name         = data.aws_eks_cluster.this.name
  kubernetes_version   = "1.35"
  cluster_service_cidr = data.aws_eks_cluster.this.kubernetes_network_config[0].service_ipv4_cidr
  subnet_ids           = var.subnet_ids

  ami_type = "AL2023_x86_64_STANDARD"
  ami_id   = "ami-0123456789abcdef0"
  # With an image of one's own nobody else tells nodeadm about the cluster: no node would join.
  enable_bootstrap_user_data = true
  cluster_endpoint           = data.aws_eks_cluster.this.endpoint
  cluster_auth_base64        = data.aws_eks_cluster.this.certificate_authority[0].data

  instance_types = ["m7i.large"]
  min_size       = 0
  desired_size   = 1
  max_size       = 10

  labels = {
    "flox.dev/enabled" = "true"
  }
  taints = {
    flox = {
      key    = "startup-taint.cluster-autoscaler.kubernetes.io/flox"
      effect = "NO_SCHEDULE"
    }
  }

  block_device_mappings = {
    xvda = {
      device_name = "/dev/xvda"
      ebs = {
        volume_size = 40
        volume_type = "gp3"
        encrypted   = true
      }
    }
  }
}
