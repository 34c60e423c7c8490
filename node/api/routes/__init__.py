"""What can be asked over HTTP, path by path, and the two apps that these make."""
