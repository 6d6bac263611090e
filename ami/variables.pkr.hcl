variable "region" {
  description = "Where the image is built."
  type        = string
}

variable "copy_to_regions" {
  description = "Further regions to copy the image to."
  type        = list(string)
  default     = []
}

variable "kubernetes" {
  description = "The Kubernetes minor of the cluster, such as 1.35."
  type        = string
}

variable "arch" {
  description = "x86_64 or arm64; see the two .pkrvars.hcl."
  type        = string

  validation {
    condition     = contains(["x86_64", "arm64"], var.arch)
    error_message = "The architecture is x86_64 or arm64."
  }
}

variable "variant" {
  description = "Which EKS-optimised image to start from: standard, nvidia or neuron."
  type        = string
  default     = "standard"

  validation {
    condition     = contains(["standard", "nvidia", "neuron"], var.variant)
    error_message = "The variant is one of standard, nvidia and neuron."
  }
}

variable "eks_release" {
  description = "The EKS image's release date, such as 20260724; the newest where it is empty."
  type        = string
  default     = ""
}

variable "instance_type" {
  description = "What the image is built on; it needs no GPU."
  type        = string
}

variable "payload" {
  description = "The payload: https://..., or oci://REGISTRY/NAME@sha256:..., as the building instance reaches it."
  type        = string
  sensitive   = true
}

variable "payload_sha256" {
  description = "The SHA-256 of the payload's archive; an oci:// reference needs none."
  type        = string
  default     = ""
}

variable "payload_version" {
  description = "The version of flox-node in the payload, for the image's name and tags."
  type        = string
}

variable "volume_gib" {
  description = "The root volume: EKS' 20 GiB, the payload, and room for environments."
  type        = number
  default     = 40
}

variable "kms_key" {
  description = "The key that the image is encrypted with; the account's own where it is empty."
  type        = string
  default     = ""
}

variable "subnet" {
  description = "The subnet to build in; the default one where it is empty."
  type        = string
  default     = ""
}

variable "instance_profile" {
  description = "The instance profile of the building instance, where its proxy or bucket wants one."
  type        = string
  default     = ""
}

variable "tags" {
  description = "Further tags of everything that the build makes."
  type        = map(string)
  default     = {}
}
