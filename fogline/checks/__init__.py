"""What `fogline doctor` looks at: one file per subject, each check a function that returns findings."""
