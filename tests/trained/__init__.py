"""Two small trained models as test data, and how they were made."""
