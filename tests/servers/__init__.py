"""Local servers that the tests talk to: a faulty HTTP one, an S3 one that checks signatures, moto."""
