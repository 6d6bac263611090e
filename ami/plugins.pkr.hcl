# What only Packer 1.7 and newer knows, in a file of its own: the rest is valid for every Packer with HCL.
packer {
  required_version = ">= 1.7.0"
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3.2, < 2.0.0"
    }
  }
}

# The newest EKS-optimised AL2023 image of that Kubernetes, or the release that `eks_release` names. Only variables stand
# in it: until 1.12 Packer knows no locals when it evaluates data sources.
data "amazon-parameterstore" "eks" {
  region = var.region
  name   = "/aws/service/eks/optimized-ami/${var.kubernetes}/amazon-linux-2023/${var.arch}/${var.variant}/${var.eks_release == "" ? "recommended" : "amazon-eks-node-al2023-${var.arch}-${var.variant}-${var.kubernetes}-v${var.eks_release}"}/image_id"
}

locals {
  source_ami = data.amazon-parameterstore.eks.value
}
