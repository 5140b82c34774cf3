"""How each miner adds up its triplets: every triplet, one negative, or a small batch at once."""
