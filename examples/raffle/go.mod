module raffle

go 1.24
