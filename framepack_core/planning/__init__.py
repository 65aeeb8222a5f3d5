"""What a film will take, before it is made: tokens, work, memory, time, and what does not go together."""
