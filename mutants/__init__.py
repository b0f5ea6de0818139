"""Plants small faults in the library, one at a time, and reports those that no test sees."""
