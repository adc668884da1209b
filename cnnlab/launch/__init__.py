"""The runs of a command as jobs: in this process, on every device, on a cluster; and hyperparameter search."""
