"""What runs on Kubernetes beside the trainer itself, and the manifests' generator."""
