//! What the node has, what of that is set aside, and what it does by itself: `GET /v1/node`.

use std::time::Instant;

use berth_types::system::{AdmissionPolicy, NodeStatus};

use crate::Node;

/// Name of the task that looks at the queue.
pub(crate) const QUEUE_TASK: &str = "queue";

/// Lets those in that wait, for as long as the node lives.
pub(crate) async fn keep_queue(node: Node) {
    loop {
        let began = Instant::now();
        let queued = node.0.admission.look_again().await;
        node.0.tasks.ran(QUEUE_TASK, began, Ok(format!("{queued} sandboxes wait")));
    }
}

impl Node {
    /// The machine's room, its sandboxes in numbers, and the background tasks.
    pub fn status(&self) -> NodeStatus {
        let (memory, disk, cpus, starts) = self.0.admission.show();
        let limits = &self.0.limits;
        let mut tasks = self.0.tasks.list();
        tasks.extend(self.0.driver.tasks());
        NodeStatus {
            memory,
            disk,
            cpus,
            sandboxes: self.0.sandboxes.count(),
            adopted: self.0.adopted.load(std::sync::atomic::Ordering::Relaxed),
            starts,
            policy: AdmissionPolicy {
                memory_overcommit: limits.memory_overcommit,
                storage_overcommit: limits.storage_overcommit,
                assumed_memory_mb: limits.assumed_memory_mb,
                assumed_storage_mb: limits.assumed_storage_mb,
                default_storage_mb: limits.default_storage_mb,
                default_pids: limits.default_pids,
                allow_unenforced_storage: limits.allow_unenforced_storage,
                storage_enforced: self.0.driver.enforces_storage(),
                user_namespaces: self.0.user_namespaces && self.0.driver.features().user_namespace,
            },
            tasks,
        }
    }
}
