"""Looking into what was learned."""
