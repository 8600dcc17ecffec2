"""Making a damaged run readable again, and saying what is gone."""
