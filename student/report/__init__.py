"""The page that compares students and teacher."""
