// Command guest runs inside a real guest of the demo.
package main

func main() {}
