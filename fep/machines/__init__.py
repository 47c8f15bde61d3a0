"""The front-end machines that share one store: who serves which bank, and what they tell."""
