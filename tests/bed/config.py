"""What `/etc/containerd/config.toml` of a plain node looks like, per release and schema."""

CRI_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
SANDBOX_IMAGE = "flox.test/pause:1"


def node_config(*, schema: int = 2, systemd_cgroup: bool = False) -> str:
    """The configuration that kubeadm's guide asks for.

    schema: 2, which every release reads, or 3 for releases 2.x.
    systemd_cgroup: pods then need a cgroup parent that is a slice.
    """
    plugin = CRI_PLUGINS[schema]
    if schema == 2:
        images = ""
        sandbox = f'  sandbox_image = "{SANDBOX_IMAGE}"\n'
    else:
        images = f"""
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{SANDBOX_IMAGE}"
"""
        sandbox = ""
    return f"""version = {schema}
{images}
[plugins."{plugin}"]
{sandbox}  # The machine under this node may not lower an oom_score_adj (CAP_SYS_RESOURCE).
  restrict_oom_score_adj = true

  [plugins."{plugin}".containerd]
    default_runtime_name = "runc"

    [plugins."{plugin}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."{plugin}".containerd.runtimes.runc.options]
        SystemdCgroup = {str(systemd_cgroup).lower()}
"""
