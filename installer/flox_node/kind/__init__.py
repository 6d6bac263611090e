"""A cluster on a laptop: from a container engine to a running Flox pod, by `flox-node kind up`.

`engine` and `tools` look at what the laptop has, `cluster_file` and `makers` say how a cluster is made, `laptop` does
it. Nothing here changes anything but by a command line that `--dry-run` prints.
"""
