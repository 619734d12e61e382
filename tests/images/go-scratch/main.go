package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("hello", os.Getuid(), len(os.Args))
}
