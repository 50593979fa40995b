"""Training an embedded-class teacher on photos."""
