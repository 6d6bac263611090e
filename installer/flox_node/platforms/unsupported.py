"""Where nothing can be installed, why, and what to do instead."""

from flox_node.platforms.platform import Sign, SignKind, refused

_OTHER_IMAGE = "Use a node pool with"

PLATFORMS = (
    refused(
        "gke-cos",
        "GKE, Container-Optimized OS",
        (Sign(SignKind.OS, "ID=cos"),),
        "Container-Optimized OS has a read-only root, so /nix cannot be made, and its writable folders are noexec.",
        f"{_OTHER_IMAGE} the image type Ubuntu with containerd (--image-type=UBUNTU_CONTAINERD).",
    ),
    refused(
        "bottlerocket",
        "Bottlerocket",
        (Sign(SignKind.OS, "ID=bottlerocket"),),
        "Bottlerocket renders containerd's configuration from settings that know no runtime handlers, and nothing "
        "outside its verified image may be run by the host.",
        f"{_OTHER_IMAGE} Amazon Linux 2023 (amiFamily: AmazonLinux2023).",
    ),
    refused(
        "talos",
        "Talos Linux",
        (Sign(SignKind.OS, "ID=talos"),),
        "Talos has a read-only root, so /nix cannot be made, and no systemd; only its machine configuration changes "
        "containerd's.",
        "Use nodes of another system (Debian, Ubuntu, Flatcar) for Flox pods.",
    ),
    refused(
        "openshift",
        "OpenShift and other nodes with CRI-O",
        (Sign(SignKind.SOCKET, "*/crio/crio.sock"), Sign(SignKind.PROGRAM, "*/crio"), Sign(SignKind.OS, "ID=rhcos")),
        "The kubelet of this node uses CRI-O, not containerd.",
        "Use nodes whose kubelet uses containerd.",
    ),
    refused(
        "composefs",
        "systems with a composefs root (Fedora CoreOS, bootc)",
        (Sign(SignKind.ROOT, "composefs*"),),
        "The root of this node is a sealed composefs image, so /nix cannot be made.",
        "Add an empty folder /nix to the image (`RUN mkdir /nix` in its Containerfile), mount a writable file system "
        "there, and name the platform with --platform plain.",
    ),
    refused(
        "nixos",
        "NixOS",
        (Sign(SignKind.OS, "ID=nixos"), Sign(SignKind.FILE, "/etc/NIXOS")),
        "NixOS makes containerd's configuration and its units from the system's own definition, and owns /nix.",
        "Declare the handler in virtualisation.containerd.settings of the system's configuration.",
    ),
    refused(
        "aks-osguard",
        "AKS, Azure Linux OS Guard and Azure Container Linux",
        (Sign(SignKind.OS, "ID=azurelinux&VARIANT_ID=osguard|ID=acl"),),
        "The image of this node is immutable and runs signed programs only.",
        f"{_OTHER_IMAGE} the OS SKU Ubuntu or AzureLinux.",
    ),
)
