"""What an answer is and whether it is the gold one: text -> stated -> spelled -> read -> compared with gold."""
