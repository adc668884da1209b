"""The jobs of a command: here, on every device, on a cluster; and the search that proposes them."""
