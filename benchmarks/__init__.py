"""What `verydeep` is measured with, beyond `verydeep bench`."""
