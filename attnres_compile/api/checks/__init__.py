"""What ``verify`` measures besides its checks: one subject a file."""
