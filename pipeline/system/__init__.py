"""The machine below: files, devices, signals, errors, progress, and how a command prints and fails."""
