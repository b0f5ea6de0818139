"""(student, teacher) -> (N,)."""
