"""The bytes of strangers: every container format read without running any code that a file may hold."""
