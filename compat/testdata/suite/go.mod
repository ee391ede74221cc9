module example.org/suite/v2

go 1.26
