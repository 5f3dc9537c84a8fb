// Empty does nothing: the start and the end of it are what Go itself costs.
package main

func main() {}
