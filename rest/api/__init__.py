"""What server and client share: routes, schemas, encoding, limits and the OpenAPI description."""
