"""Local servers for the tests: a faulty HTTP one, S3 that checks signatures, moto."""
