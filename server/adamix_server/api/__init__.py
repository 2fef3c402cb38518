"""What server and client say to each other, as values: names, answers, statuses. Knows no servicer and no channel."""
