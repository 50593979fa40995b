"""The machine below: files, devices, signals, progress, errors."""
